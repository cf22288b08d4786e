# The migrator with its dashboard, as an image for Heroku and everywhere else:
#
#   docker build -t heroku-migrator .
#   docker run --read-only -e HEROKU_URL=… -e PLANETSCALE_URL=… -e PASSWORD=… -p 127.0.0.1:8080:8080 heroku-migrator
#
# It runs as any user and writes no file. examples/heroku-app/README.md lists the environment.

ARG GO_IMAGE=golang:1.26-trixie
ARG POSTGRES_IMAGE=postgres:18-trixie

FROM ${GO_IMAGE} AS build
WORKDIR /src
# All at once: "go mod download" before it would fetch what only tests need.
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/heroku-app ./examples/heroku-app

# pg_dump has to be as new as the newest server that is moved.
FROM ${POSTGRES_IMAGE} AS client
USER root
COPY deploy/rootfs.sh /rootfs.sh
RUN sh /rootfs.sh /rootfs

FROM scratch
COPY --from=client /rootfs/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/heroku-app /usr/bin/heroku-app
# The program needs 30 to 50 MiB; the limit is for the collector, on the smallest dynos with 512 MB.
ENV PATH=/usr/bin:/bin GOMEMLIMIT=256MiB PORT=8080
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=6s --start-period=5s CMD ["heroku-app", "health"]
CMD ["heroku-app", "web"]
