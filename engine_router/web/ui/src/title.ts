// The title of the tab: what the router is doing, for one who looks at something else.
import { computed, effect } from "@preact/signals";
import { inSentence } from "./components/format";
import { link, state } from "./state/events";
import type { RouterState } from "./types";

const NAME = "engine-router";

/** Puts the state into a few words: a swap under way, what failed, who waits, what is resident. */
export function titleOf(router: RouterState | null, isLost: boolean): string {
  if (isLost) return `⚠ no connection · ${NAME}`;
  if (router === null) return NAME;
  const pools = Object.values(router.pools);
  const swap = pools.flatMap((pool) => pool.swaps)[0];
  const waiting = pools.reduce((sum, pool) => sum + Object.values(pool.waiting).reduce((a, b) => a + b, 0), 0);
  const queue = waiting ? ` · ${waiting} waiting` : "";
  if (swap) return `⇄ ${inSentence(swap.target ?? `stopping ${swap.source ?? ""}`)}${queue} · ${NAME}`;
  const residents = pools.flatMap((pool) => pool.residents);
  if (residents.some((resident) => resident.phase === "stuck")) return `⚠ stuck · ${NAME}`;
  const running = residents.reduce((sum, resident) => sum + resident.in_flight, 0);
  if (running) return `▶ ${running} running${queue} · ${NAME}`;
  if (waiting) return `⏳ ${waiting} waiting · ${NAME}`;
  const first = residents[0];
  if (first) return `${residents.length === 1 ? inSentence(first.model ?? first.resident) : `${residents.length} resident`} · ${NAME}`;
  return `empty · ${NAME}`;
}

/** Keeps the title up to date. */
export function showTitle(): void {
  const title = computed(() => titleOf(state.value, link.value === "lost"));
  effect(() => {
    document.title = title.value;
  });
}
