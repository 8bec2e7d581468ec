"""The wire of Envoy Gateway's extension hook. `extension_pb2.py` is generated from `extension.proto`:

python -m grpc_tools.protoc -Icontroller --python_out=controller --pyi_out=controller \\
    controller/headrace/gateway/protocol/extension.proto
"""
