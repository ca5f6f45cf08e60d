"""GGUF files: their header, the tensors that a model's file should hold, and the model itself."""
