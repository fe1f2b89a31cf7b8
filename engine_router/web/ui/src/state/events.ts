// The router's state, kept up to date by one stream for all tabs of the browser. Nothing polls.
import { batch, effect, signal, untracked } from "@preact/signals";
import { base, query } from "../api";
import type { RouterState } from "../types";
import { serverTime, setServerTime } from "./clock";
import { type Json, merged } from "./merge";
import { checkSession, isAdmin, session } from "./session";
import { Tabs } from "./tabs";

/** The state of the router; null until the first of it has come. */
export const state = signal<RouterState | null>(null);

/** How the stream is: `lost` after a while without one. */
export const link = signal<"connecting" | "open" | "lost">("connecting");

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;

/** What the tab that reads the stream tells the others. */
interface News {
  snapshot?: RouterState;
  patch?: Json;
  /** The number of what came last. */
  id?: string;
  link?: typeof link.value;
  /** The router's time, where the snapshot is not fresh. */
  time?: number;
}

let source: EventSource | null = null;
let pause = FIRST_PAUSE_MS;
let timer: ReturnType<typeof setTimeout> | undefined;
let lastId = "";

const tabs = new Tabs(`engine-router ${base}`, {
  open: connect,
  close: hangUp,
  take: (news) => take(news as News),
  known: (): News | null => state.value && { snapshot: state.value, id: lastId, link: link.value, time: serverTime() },
});

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

function take({ snapshot, patch, id, link: told, time }: News): void {
  // What has changed means nothing to a tab that does not know what was before: it is told that first.
  if (patch !== undefined && state.value === null) return;
  batch(() => {
    if (snapshot !== undefined) takeSnapshot(snapshot);
    if (time !== undefined) setServerTime(time);
    if (patch !== undefined) takePatch(patch);
    if (id !== undefined) lastId = id;
    link.value = told ?? (state.value === null ? "connecting" : "open");
  });
}

/** Takes in what the stream brought, and tells the other tabs. */
function pass(news: News): void {
  take(news);
  tabs.tell(news);
}

/** Opens the stream, in the place of an open one. It goes on behind what is known already. */
function connect(): void {
  hangUp();
  const known = state.value === null ? {} : { last_event_id: lastId };
  const stream = (source = new EventSource(`${base}/admin/events${query({ patches: 1, ...known })}`));
  stream.addEventListener("open", () => pass({}));
  stream.addEventListener("snapshot", (event) => pass({ snapshot: JSON.parse(event.data), id: event.lastEventId }));
  stream.addEventListener("patch", (event) => pass({ patch: JSON.parse(event.data), id: event.lastEventId }));
  stream.addEventListener("error", () => {
    pass({ link: "lost" });
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
function hangUp(): void {
  clearTimeout(timer);
  source?.close();
  source = null;
}

/** Forgets the state, which this key may not see. */
function forget(): void {
  tabs.leave();
  state.value = null;
}

/** Follows the router as long as the page is used with a key that may see everything. */
export function followSession(): void {
  effect(() => (isAdmin.value ? untracked(() => tabs.join()) : untracked(forget)));
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
