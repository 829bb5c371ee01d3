# Two images of this checkout:
#   docker build --target cpu -t torch2engine:cpu .   a trial without a GPU: ONNX Runtime answers
#   docker build --target gpu -t torch2engine:gpu .   TensorRT-RTX on NVIDIA's PyTorch; run it with --gpus all
# Each runs the command line: docker run --rm torch2engine:cpu doctor

FROM python:3.12-slim AS cpu
WORKDIR /opt/torch2engine
COPY pyproject.toml README.md LICENSE ./
COPY torch2engine torch2engine
RUN pip install ".[cli]" --extra-index-url https://download.pytorch.org/whl/cpu
WORKDIR /work
ENTRYPOINT ["torch2engine"]
CMD ["--help"]

FROM nvcr.io/nvidia/pytorch:26.06-py3 AS gpu
WORKDIR /opt/torch2engine
COPY pyproject.toml README.md LICENSE ./
COPY torch2engine torch2engine
RUN pip install ".[rtx,cli]"
WORKDIR /work
ENTRYPOINT ["torch2engine"]
CMD ["--help"]
