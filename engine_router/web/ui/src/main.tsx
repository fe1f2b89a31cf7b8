import { render } from "preact";
import { App } from "./app";
import { followSession } from "./state/events";
import { showTitle } from "./title";

const root = document.getElementById("app");
if (root) render(<App />, root);
showTitle();
followSession();
