"""Export of a saved model: packed, half precision, ONNX, OpenVINO, with a model card.

Each format is a module of its own, imported when it is used: `packed_file`, `quantizer` (reads
packed folders in transformers), `dense`, `onnx_format`, `openvino_format`, `vocabulary`, `card`,
`hub`; `folders` chooses between them.
"""
