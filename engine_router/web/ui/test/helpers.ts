// What tests of views share: a state, and a page to render into.
import { type ComponentChild, render } from "preact";
import { act } from "preact/test-utils";
import { takeSnapshot } from "../src/state/events";
import type { Pool, Resident, RouterState } from "../src/types";

export const GIB = 2 ** 30;
export const NOW = 1_800_000_000;

export const resident = (name: string, more: Partial<Resident> = {}): Resident => ({
  resident: name,
  engine: name,
  phase: "ready",
  in_flight: 0,
  ...more,
});

export const pool = (more: Partial<Pool> = {}): Pool => ({
  gauge: "nvidia",
  mode: "exclusive",
  residents: [],
  swaps: [],
  failed: {},
  waiting: {},
  ...more,
});

export const router = (more: Partial<RouterState> = {}): RouterState => ({
  version: "1.2.3",
  started_at: NOW - 60,
  uptime_s: 60,
  pools: { main: pool() },
  engines: {
    a: { type: "process", pool: "main", state: "ready" },
    b: { type: "process", pool: "main", state: "stopped" },
  },
  models: {
    alpha: { engine: "a", state: "ready", resident: "a", load_cost_s: 8 },
    beta: { engine: "b", state: "off", resident: "b", need_bytes: 20 * GIB, load_cost_s: 30 },
  },
  ...more,
});

/** Shows something, with a state of the router. */
export async function show(child: ComponentChild, state?: RouterState): Promise<void> {
  await act(() => {
    if (state) takeSnapshot(state);
    render(child, document.body);
  });
}

export const text = (selector = "body"): string => document.querySelector(selector)?.textContent ?? "";

export function button(label: string): HTMLButtonElement {
  const found = [...document.querySelectorAll("button")].find((each) => [each.textContent, each.ariaLabel, each.getAttribute("aria-label")].includes(label));
  if (!found) throw new Error(`no button ${label}`);
  return found;
}

/** Takes the place of `fetch`: what was sent, and an answer to each. */
export function answering(answer: (path: string, body: unknown) => unknown): [string, unknown][] {
  const sent: [string, unknown][] = [];
  globalThis.fetch = ((path: string, init?: RequestInit) => {
    const body: unknown = typeof init?.body === "string" ? JSON.parse(init.body) : undefined;
    sent.push([path, body]);
    return Promise.resolve(new Response(JSON.stringify(answer(path, body) ?? {}), { status: 200 }));
  }) as typeof fetch;
  return sent;
}

// Elements in which the order of a line begins anew: blocks do that by themselves, the others by the stylesheet.
const ISOLATED = "bdi, a, code, strong, summary, .tag, td, th, dd, dt, p, pre, h1, h2, h3, li, option, textarea, div, .dated > span, .resident > .bad";

/** Returns the texts in which foreign text with `mark` stands beside other text, whose order it could change. */
export function leaking(root: Element, mark: string): string[] {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const found: string[] = [];
  for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
    if (!node.textContent?.includes(mark)) continue;
    const holder = node.parentElement;
    const isAlone = holder !== null && [...holder.childNodes].every((each) => each === node || !each.textContent?.trim());
    if (!holder?.matches(ISOLATED) || !isAlone) found.push(holder?.textContent ?? "");
  }
  return found;
}
