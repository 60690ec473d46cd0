# wallprobe with nft and iptables, for docker-compose.yml and for a reflector in a container:
#   docker build -t wallprobe . && docker run --rm wallprobe --help
FROM golang:1.26.8-bookworm AS build
LABEL wallprobe.stage=build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags=-s -o /wallprobe ./cmd/wallprobe

FROM debian:bookworm-20250520-slim
RUN apt-get update \
	&& apt-get install --yes --no-install-recommends nftables iptables ipset \
	&& rm -rf /var/lib/apt/lists/*
# The hosts of the lab find each other's sockets here; each user may add some.
RUN mkdir -m 1777 /run/wallprobe
COPY --from=build /wallprobe /usr/local/bin/wallprobe
WORKDIR /work
USER nobody
ENTRYPOINT ["wallprobe"]
