"""llama.cpp's own HTTP server from a wheel, and tiny models to try it with.

``python -m engine_router.llamacpp -m FILE.gguf --port 8081`` runs llama.cpp's server with the flag names of
its ``llama-server`` program. Nothing has to be built: the C++ server is in the wheel ``xllamacpp``, which
``pip install 'engine-router[llamacpp]'`` brings.

``python -m engine_router.engines.llamacpp.tiny FILE.gguf`` writes a small model with random weights, for trials and
tests without a download; `engine_router.engines.llamacpp.tiny.write_tiny_gguf` does the same from Python.

Importing this package imports neither the wheel nor numpy.
"""
