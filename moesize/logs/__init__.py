"""Start-up logs of vLLM, SGLang and llama.cpp: bytes in, facts with line numbers out.

clean       bytes -> lines without what containers, terminals and loggers put around them
facts       what a start said: settings, sizes by rank, and how it ended
vllm, sglang, llamacpp   a table of patterns each, with the sources they were read in
detect      the whole file -> the start that counts
"""
