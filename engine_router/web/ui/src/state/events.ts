// The router's state, kept up to date by one stream. Nothing polls.
import { batch, effect, signal, untracked } from "@preact/signals";
import { base } from "../api";
import type { RouterState } from "../types";
import { setServerTime } from "./clock";
import { type Json, merged } from "./merge";
import { checkSession, isAdmin, session } from "./session";

/** The state of the router; null until the first of it has come. */
export const state = signal<RouterState | null>(null);

/** How the stream is: `lost` after a while without one. */
export const link = signal<"connecting" | "open" | "lost">("connecting");

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;

let source: EventSource | null = null;
let pause = FIRST_PAUSE_MS;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Takes in a whole state. */
export function takeSnapshot(snapshot: RouterState): void {
  batch(() => {
    if (snapshot.started_at != null) setServerTime(snapshot.started_at + snapshot.uptime_s);
    state.value = snapshot;
    link.value = "open";
  });
  pause = FIRST_PAUSE_MS;
}

/** Takes in what has changed. */
export function takePatch(patch: Json): void {
  if (state.value !== null) state.value = merged(state.value as unknown as Json, patch) as unknown as RouterState;
}

/** Opens the stream, in the place of an open one. */
function connect(): void {
  clearTimeout(timer);
  source?.close();
  const stream = (source = new EventSource(`${base}/admin/events?patches=1`));
  stream.addEventListener("open", () => (link.value = state.value === null ? "connecting" : "open"));
  stream.addEventListener("snapshot", (event) => takeSnapshot(JSON.parse(event.data)));
  stream.addEventListener("patch", (event) => takePatch(JSON.parse(event.data)));
  stream.addEventListener("error", () => {
    link.value = "lost";
    // A browser comes back by itself where the connection broke, but not where it was refused.
    if (stream.readyState === EventSource.CLOSED) void retry(stream);
  });
}

async function retry(stream: EventSource): Promise<void> {
  await checkSession();
  if (source === stream) timer = setTimeout(connect, nextPause());
}

function nextPause(): number {
  const now = pause * (0.75 + Math.random() / 2);
  pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  return now;
}

/** Closes the stream. */
function disconnect(): void {
  clearTimeout(timer);
  source?.close();
  source = null;
  state.value = null;
}

/** Has a stream as long as the page is used with a key that may see everything. */
export function followSession(): void {
  effect(() => (isAdmin.value ? untracked(connect) : untracked(disconnect)));
  void findOut();
}

async function findOut(): Promise<void> {
  await checkSession();
  if (session.value !== null) return;
  link.value = "lost";
  setTimeout(() => void findOut(), nextPause());
}

addEventListener("online", () => {
  if (link.value === "lost" && source !== null) connect();
});
