// What `/admin/figures` tells, as series that can be drawn.
import type { Series } from "../components/chart";

type Values = (number | null)[];

export interface Figures {
  since: number;
  step_s: number;
  pools: Record<string, { capacity_bytes: Values; used_bytes: Values; residents: Record<string, Values> }>;
  models: Record<string, { requests: Values; tokens_out: Values; tokens_per_s: Values }>;
  swaps: { seconds: Values; count: Values };
  serving_s: Values;
  queue: { length: Values; wait_p50_s: Values; wait_p95_s: Values };
  gpu: Record<string, { use: Values; temperature_c: Values }>;
  today: { swaps: number; swap_s: number; serving_s: number; text: string };
}

const MOST_SERIES = 8;

/** Returns the moments of the figures: the end of each step. */
export function timesOf(figures: Figures): number[] {
  const length = figures.serving_s.length;
  return Array.from({ length }, (_, index) => figures.since + (index + 1) * figures.step_s);
}

/** Returns values one upon the other, the uppermost first, so that each area hides the lower part of the one before. */
export function stacked(named: Record<string, Values>): Series[] {
  let below: Values = [];
  const layers = Object.entries(named).map(([label, values], colour): Series => {
    below = values.map((value, index) => (value === null ? null : value + (below[index] ?? 0)));
    return { label, values: below, colour, kind: "area" };
  });
  return layers.reverse();
}

/** Returns one series for each name; of many names those with the most, and the rest together. */
export function mostOf(named: Record<string, Values>, kind: Series["kind"] = "line"): Series[] {
  const ranked = Object.entries(named)
    .filter(([, values]) => values.some((value) => value !== null && value !== 0))
    .sort(([, one], [, other]) => sum(other) - sum(one));
  const shown = ranked.length > MOST_SERIES ? ranked.slice(0, MOST_SERIES - 1) : ranked;
  const rest = ranked.slice(shown.length).map(([, values]) => values);
  const series = shown.map(([label, values], colour): Series => ({ label, values, colour, kind }));
  if (rest.length > 0) series.push({ label: `${rest.length} others`, values: together(rest), colour: MOST_SERIES - 1, kind });
  return series;
}

/** Returns how much of each step something took, in percent. */
export function share(seconds: Values, stepS: number): Values {
  return seconds.map((value) => (value === null ? null : Math.min(100, (100 * value) / stepS)));
}

/** Returns amounts of each step by the second. */
export function perSecond(values: Values, stepS: number): Values {
  return values.map((value) => (value === null ? null : value / stepS));
}

/** Returns whether there is anything to draw. */
export function hasAny(series: readonly Series[]): boolean {
  return series.some(({ values }) => values.some((value) => value !== null));
}

function together(lists: Values[]): Values {
  return (lists[0] ?? []).map((_, index) => {
    const known = lists.map((values) => values[index] ?? null).filter((value) => value !== null);
    return known.length === 0 ? null : known.reduce((total, value) => total + value, 0);
  });
}

const sum = (values: Values): number => values.reduce<number>((total, value) => total + (value ?? 0), 0);
