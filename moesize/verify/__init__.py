"""Measuring real tensors on a real device. Needs the extra `verify` (torch, safetensors)."""
