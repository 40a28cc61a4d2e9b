"""The edge: a real Envoy whose whole configuration is generated from the contracts.

It owns what a client sees of the suite that is not an RPC's own answer: REST faces, streams as SSE or NDJSON, who is let in,
the one error shape, health, and the documentation pages. It holds no state and knows no business rule; whatever it decides
about identity every service decides again by itself.

Start it as `envoy -c DIR/envoy.yaml --disable-hot-restart --concurrency N --drain-time-s S --file-flush-interval-msec 1000`:
several run on one machine, with the number of threads from EDGE_CONCURRENCY. To stop it: `POST /drain_listeners?graceful` on
the admin address (clients are told to go, and after S seconds no new connection is taken while open streams go on), a wait
for as long as the streams may need, then SIGTERM, which cuts what is still open. Envoy ends with the thread that started it.
"""
