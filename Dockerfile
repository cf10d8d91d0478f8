# One image for every step: `docker run arcloop run experiment=mnist`.
#   docker build -t arcloop .                          CPU
#   docker build -t arcloop --build-arg EXTRAS=gpu .   GPU: needs the NVIDIA container runtime
# A pipeline's steps want kfp and the archiver too: EXTRAS=cpu,kubeflow,serving.
FROM python:3.11-slim
ARG EXTRAS=cpu
WORKDIR /opt/arcloop
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY conf conf
COPY data/mnist data/mnist
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
COPY serving serving
COPY kubeflow kubeflow
ENV OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1000 arcloop
USER arcloop
WORKDIR /home/arcloop
ENTRYPOINT ["arcloop"]
CMD ["--help"]
