"""The model: tokenizers, causal transformer and de-tokenizers, one file a box of the paper's Figure 2.

Letters of shapes, the same in the whole package:

========  ==============================================================================================
B         batch
N         physical steps of a rollout, or frames of a clip
C, h, w   channels, height and width of latents
H, W      height and width of frames, pixels
F         frame tokens of a step in the causal transformer: patches, and joint positions where it reads them
M         patches of a frame in the spatial encoder and the frame de-tokenizer
L         actions per chunk
K         actions of foresight, predicted with the chunk and never executed
A         numbers per action
P         numbers of proprioception, joint positions first
S         tokens of a sequence, for example the prefix
D         width of tokens
R         draws of noise and diffusion time per condition
========  ==============================================================================================

``T`` is diffusion time.
"""
