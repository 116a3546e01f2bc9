"""TensorRT engines: built from a checked ONNX file, inspected, kept with what they are made of.

    ONNX --lint--> --EngineBuilder, a process of its own--> engine --compare precision--> side-car

:mod:`~rekd_edge.engines.backend` is the one place that knows TensorRT from TensorRT-RTX. Importing
this package imports neither, nor torch.
"""
