"""Reader of Hugging Face config.json files, one module per kind of family."""
