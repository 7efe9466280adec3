"""The model: tokenizers, causal transformer and de-tokenizers, one file a box of the paper's Figure 2.

Letters of shapes, the same in the whole package:

========  ==============================================================================================
B         batch: clips, windows, or environments
N         physical steps of a rollout, an episode or a window, or frames of a clip
E         control steps of an episode or rollout; it is observed E + 1 times
C, h, w   channels, height and width of latents
H, W      height and width of frames or feature maps, pixels
F         frame tokens of a step: patches, and joint positions where the model reads them
M         patches of a frame in the spatial encoder and the frame de-tokenizer
L         actions per chunk
K         actions of foresight, predicted with the chunk and never executed
A         numbers per action
P         numbers of proprioception: joint positions, then extra observations
S         tokens of a sequence, for example the prefix, or a step's conditions
D         width of tokens
R         draws of noise and diffusion time per condition
========  ==============================================================================================

``T`` is the last diffusion time, ``t`` one of them. Other lower-case letters, such as ``n`` and ``k``, are counts that
the docstring at hand explains.
"""
