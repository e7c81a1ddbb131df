# SPDX-License-Identifier: MIT
# The README's commands, on a machine with nothing but NVIDIA's compiler.
#   docker build -t ocnet .
#   docker run --gpus all --ipc host -v "$PWD/dataset:/ocnet/dataset" -v "$PWD/runs:/ocnet/runs" ocnet train --config ...
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends git make g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /ocnet
COPY . .
RUN make install
ENV PATH=/ocnet/.venv/bin:$PATH
ENTRYPOINT ["ocnet"]
CMD ["doctor"]
