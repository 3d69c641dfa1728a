# docker build -t sum-factory .
# docker run --rm -v $PWD:/data sum-factory labelgen run --images photos/ --shards labels/ --refiner vit_micro
#
# PyTorch comes from pip's own index: on x86-64 that build runs on a CPU and, with `docker run --gpus all`, on CUDA. A
# smaller one for the CPU alone, or one for another CUDA, comes from the index that PyTorch's site names for it:
# docker build -t sum-factory --build-arg TORCH_INDEX=URL .
FROM python:3.11-slim

ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} -c /tmp/constraints.txt torch torchvision

WORKDIR /opt/sum-factory
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt .

# As in the Makefile: glibc gives large tensors back to the kernel, and page faults are slow.
ENV MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456
WORKDIR /data
CMD ["labelgen", "--help"]
