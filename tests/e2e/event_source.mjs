// A browser's EventSource (the npm package of that name) with a cookie: prints each message, then CLOSED when it has stopped.
import { EventSource } from "eventsource";

const [url, cookie] = process.argv.slice(2);
const withCookie = (input, init) => fetch(input, { ...init, headers: { ...init.headers, cookie } });
const source = new EventSource(url, { fetch: withCookie });
source.onmessage = (message) => console.log(JSON.stringify({ id: message.lastEventId, data: JSON.parse(message.data) }));
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) {
    console.log(JSON.stringify({ closed: error.code ?? null }));
    process.exit(0);
  }
};
