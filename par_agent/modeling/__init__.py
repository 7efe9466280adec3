"""The model, laid out as the paper's Figure 2: tokenizers, causal transformer, frame and action de-tokenizers."""
