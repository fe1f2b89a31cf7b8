// What a person can have the router do, and what that costs.
import { confirmed } from "../components/dialog";
import { counted, inSentence } from "../components/format";
import { attempt, toast } from "../components/toast";
import { get, post } from "../api";
import type { Job, Model, Resident, RouterState } from "../types";
import { state } from "./events";

/** Returns the residents that go when a model is loaded, as far as that is certain: those of a group may stay. */
export function goingFor(router: RouterState, model: Model): readonly Resident[] {
  const pool = router.pools[router.engines[model.engine]?.pool ?? ""];
  if (pool?.mode !== "exclusive") return [];
  return pool.residents.filter((each) => each.resident !== model.resident && !each.group);
}

/** Says what loading a model costs, as far as it is known. */
export function loadCost(router: RouterState, id: string): string {
  const model = router.models[id];
  if (!model) return "";
  const going = goingFor(router, model);
  const costs = [model.load_cost_s, ...going.map((each) => each.unload_cost_s ?? 0)];
  const seconds = model.load_cost_s == null ? null : costs.reduce<number>((sum, cost) => sum + (cost ?? 0), 0);
  const parts = going.length ? [`stops ${residentsIn(going)}`] : [];
  const free = router.pools[router.engines[model.engine]?.pool ?? ""]?.memory?.free_bytes;
  if (!going.length && free != null && model.need_bytes != null && model.need_bytes > free) {
    parts.push("others may have to make way");
  }
  parts.push(seconds === null ? "how long it takes is not known yet" : `about ${counted(Math.max(1, seconds))}`);
  return parts.join(", ");
}

/** Says what it costs to unload residents. */
export function unloadCost(residents: readonly Resident[]): string {
  const costs = residents.map((each) => each.load_cost_s);
  const known = costs.filter((cost) => cost != null);
  const running = residents.reduce((sum, each) => sum + each.in_flight, 0);
  const parts = [`stops ${residentsIn(residents)}`];
  if (running) parts.push(`after ${running === 1 ? "1 request has" : `${running} requests have`} finished`);
  if (known.length) parts.push(`loading again takes about ${counted(Math.max(1, known.reduce((sum, cost) => sum + cost, 0)))}`);
  return parts.join(", ");
}

/** Returns a model that a resident serves, by which the router knows it; null where it serves none. */
export function modelOf(router: RouterState, resident: string): string | null {
  return Object.entries(router.models).find(([, model]) => model.resident === resident)?.[0] ?? null;
}

/** Loads a model, after a question where that stops others. */
export async function load(id: string): Promise<void> {
  const router = state.value;
  const model = router?.models[id];
  if (!router || !model) return;
  const busy = goingFor(router, model);
  if (busy.length && !(await confirmed(`Load ${inSentence(id)}?`, capital(loadCost(router, id)) + ".", "Load"))) return;
  await attempt(async () => follow(await post<Job>("/admin/load", { model: id }), `${inSentence(id)} is loaded.`));
}

/** Unloads one resident, after a question where requests use it. */
export async function unload(resident: Resident): Promise<void> {
  const router = state.value;
  if (!router) return;
  if (resident.in_flight && !(await confirmed(`Unload ${inSentence(resident.resident)}?`, capital(unloadCost([resident])) + ".", "Unload", true))) return;
  const model = modelOf(router, resident.resident);
  const named = model === null ? { engine: resident.engine } : { model };
  await attempt(async () => follow(await post<Job>("/admin/unload", { ...named, wait: false }), `${inSentence(resident.resident)} is unloaded.`));
}

/** Unloads everything, after a question. */
export async function unloadAll(residents: readonly Resident[]): Promise<void> {
  if (!(await confirmed("Unload everything?", capital(unloadCost(residents)) + ".", "Unload all", true))) return;
  await attempt(async () => follow(await post<Job>("/admin/unload", { all: true, wait: false }), "Everything is unloaded."));
}

export async function pin(model: string, pinned: boolean): Promise<void> {
  await attempt(() => post("/admin/pin", { model, pinned }), `${inSentence(model)} is ${pinned ? "pinned: nothing evicts it" : "not pinned any more"}.`);
}

export async function reset(model: string): Promise<void> {
  await attempt(() => post("/admin/reset", { model }), `The failures of ${inSentence(model)} are forgotten: the next request starts it.`);
}

export async function cancel(id: string): Promise<void> {
  await attempt(() => post("/admin/cancel", { id }), "Cancelled.");
}

export async function rescan(): Promise<void> {
  await attempt(() => post("/admin/rescan"), "The folders were looked through again.");
}

// Milliseconds between two questions after a job that the stream has not told of yet.
const ASK_AGAIN_MS = 500;

/** Tells how a job ends: the stream says when it has ended, the router then says how. */
export function follow(job: Job, done: string): void {
  let wasSeen = false;
  let isOver = false;
  const tell = async (): Promise<void> => {
    const now = await get<Job>(`/admin/jobs/${encodeURIComponent(job.job)}`).catch(() => null);
    if (isOver) return;
    if (now?.state === "running") {
      // It may be over before the stream tells of it at all.
      if (!wasSeen) setTimeout(() => void tell(), ASK_AGAIN_MS);
      return;
    }
    isOver = true;
    stop();
    if (now?.error) toast(now.error.message, "error");
    else if (now?.state === "cancelled") toast(`${inSentence(now.subject)}: cancelled.`);
    else if (now !== null) toast(done);
  };
  const stop = state.subscribe((router) => {
    const isRunning = router?.jobs?.[job.job] !== undefined;
    if (wasSeen && !isRunning) queueMicrotask(() => void tell());
    wasSeen ||= isRunning;
  });
  if (!wasSeen) setTimeout(() => void tell(), ASK_AGAIN_MS);
}

const residentsIn = (residents: readonly Resident[]): string => residents.map((each) => inSentence(each.resident)).join(", ");
const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
