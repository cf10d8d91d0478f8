# One image for every step: `docker run arcloop run experiment=mnist`.
#   docker build -t arcloop .                          CPU
#   docker build -t arcloop --build-arg EXTRAS=gpu .   GPU: needs the NVIDIA container runtime
# A pipeline's steps want kfp and the archiver too: EXTRAS=cpu,kubeflow,serving; sweep=optuna: sweeps.
# REVISION, SOURCE and CREATED become labels; manifests of artifacts record REVISION. CREATED is the
# time of the commit, so that two builds of a commit can have the same digest:
#   --build-arg REVISION=$(git rev-parse HEAD) --build-arg CREATED=$(git log -1 --format=%cI)
FROM python:3.11-slim
ARG EXTRAS=cpu
WORKDIR /opt/arcloop
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY conf conf
COPY data/mnist data/mnist
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" \
 && ln -s "$PWD/data/mnist" /usr/local/lib/python3.11/site-packages/arcloop/_bundled/mnist
COPY serving serving
COPY kubeflow kubeflow
ENV OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1000 arcloop
# By number, because Kubernetes cannot verify that a name is not root.
USER 1000:1000
WORKDIR /home/arcloop
ENV HOME=/home/arcloop
ARG REVISION=""
ARG SOURCE=""
ARG CREATED=""
LABEL org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=$SOURCE \
      org.opencontainers.image.created=$CREATED
ENV ARCLOOP_REVISION=$REVISION
ENTRYPOINT ["arcloop"]
CMD ["--help"]
