// What a model's next answer waits for, in words, as the router's state tells.
import { counted, duration } from "../components/format";
import type { RouterState } from "../types";

export function waitingWords(state: RouterState | null, model: string, now: number): string {
  const entry = state?.models[model];
  if (state === null || entry === undefined) return "waiting for the router";
  const pool = state.pools[state.engines[entry.engine]?.pool ?? ""];
  const resident = entry.resident ?? entry.engine;
  const swap = pool?.swaps.find(({ target }) => target === resident);
  if (swap) {
    const usual = swap.phases?.find(({ name }) => name === swap.phase)?.usual_s;
    const since = swap.phase_began_at == null ? "" : ` for ${counted(now - swap.phase_began_at)}`;
    const instead = swap.source && swap.phase !== "start" ? ` of ${swap.source}` : "";
    return `loading ${model}: ${swap.phase ?? "swap"}${instead}${since}${usual ? `, usually ${duration(usual)}` : ""}`;
  }
  const queued = pool?.queue?.filter(({ resident: wanted, model: named }) => wanted === resident || named === model).at(-1);
  if (queued) {
    const when = queued.expected_at != null && queued.expected_at > now ? `, about ${duration(queued.expected_at - now)} more` : "";
    return `in the queue, place ${queued.place}${when}${queued.reason ? `: ${queued.reason}` : ""}`;
  }
  return "the model reads the prompt";
}
