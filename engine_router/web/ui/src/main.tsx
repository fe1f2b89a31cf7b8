import { render } from "preact";
import { App } from "./app";
import { connect } from "./state/events";
import { checkSession } from "./state/session";
import { showTitle } from "./title";

const root = document.getElementById("app");
if (root) render(<App />, root);
showTitle();
// Both at once: where a key is needed, the stream is refused, and opened again when there is one.
void checkSession();
connect();
