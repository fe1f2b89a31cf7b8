// What the router has done over time: memory, requests, tokens, swaps, queue, GPUs.
import { useMemo } from "preact/hooks";
import { query } from "../api";
import { Chart, type Series } from "../components/chart";
import { bytes, duration } from "../components/format";
import { type Figures as Data, hasAny, mostOf, perSecond, share, stacked, timesOf } from "../figures/series";
import { place, setParams } from "../router";
import { useBeat, useLoaded } from "../state/loaded";

const SPANS = [
  ["hour", "Last hour", 3600],
  ["day", "Last day", 86_400],
  ["week", "Last week", 604_800],
  ["month", "Last month", 2_678_400],
] as const;
const POINTS = 240;
const REFRESH_MS = 15_000;

export default function Figures() {
  const wanted = place.value.params.get("span");
  const [span, , seconds] = SPANS.find(([name]) => name === wanted) ?? SPANS[0];
  const beat = useBeat(REFRESH_MS, true);
  const path = `/admin/figures${query({ span_s: seconds, points: POINTS })}`;
  const { data, error } = useLoaded<Data>(path, beat, REFRESH_MS / 2);
  return (
    <>
      <h1>Figures</h1>
      <div class="buttons filters" role="group" aria-label="Span of time">
        {SPANS.map(([name, title]) => (
          <button key={name} type="button" aria-pressed={name === span} onClick={() => setParams({ span: name })}>
            {title}
          </button>
        ))}
      </div>
      {error && <p class="bad" role="alert">{error}</p>}
      {data !== null && <Charts figures={data} />}
      {data === null && !error && <p class="soft">The figures are on their way …</p>}
    </>
  );
}

interface Plot {
  title: string;
  series: Series[];
  format: (value: number) => string;
}

function Charts({ figures }: { figures: Data }) {
  const times = useMemo(() => timesOf(figures), [figures]);
  const plots = useMemo(() => plotsOf(figures).filter((plot) => hasAny(plot.series)), [figures]);
  return (
    <>
      <p class="today">{figures.today.text}</p>
      <div class="charts">
        {plots.map(({ title, series, format }) => (
          <section class="card" key={title}>
            <h2>{title}</h2>
            <Chart label={inWords(title, series, format)} times={times} series={series} format={format} />
          </section>
        ))}
      </div>
      {plots.length === 0 && <p class="soft">Nothing has happened in this time.</p>}
    </>
  );
}

const percent = (value: number): string => `${Math.round(value)} %`;
const degrees = (value: number): string => `${Math.round(value)} °C`;
const number = (value: number): string => value.toLocaleString(undefined, { maximumFractionDigits: 2 });

/** Returns what is drawn, in the order in which people ask for it. */
function plotsOf(figures: Data): Plot[] {
  const models = Object.entries(figures.models);
  const by = (pick: (each: Data["models"][string]) => (number | null)[]): Record<string, (number | null)[]> =>
    Object.fromEntries(models.map(([id, each]) => [id, pick(each)]));
  const memory = Object.entries(figures.pools).map(([name, pool]): Plot => {
    const layers = stacked(pool.residents);
    const all: Series = { label: "all that is used", values: pool.used_bytes, colour: 7 };
    const capacity: Series = { label: "capacity", values: pool.capacity_bytes, colour: 6 };
    return { title: `Memory of ${name}`, series: [...layers, all, capacity], format: bytes };
  });
  const gpus = Object.entries(figures.gpu).flatMap(([index, gpu]): Plot[] => [
    { title: `Use of GPU ${index}`, series: [{ label: "use", values: gpu.use, colour: 1, kind: "area" }], format: percent },
    { title: `Temperature of GPU ${index}`, series: [{ label: "temperature", values: gpu.temperature_c, colour: 2 }], format: degrees },
  ]);
  return [
    ...memory,
    { title: "Tokens per second", series: mostOf(by((each) => perSecond(each.tokens_out, figures.step_s))), format: number },
    { title: "Requests", series: mostOf(by((each) => each.requests), "bars"), format: number },
    { title: "Speed of generation (tokens/s of one request)", series: mostOf(by((each) => each.tokens_per_s), "points"), format: number },
    {
      title: "Time in swaps against time serving",
      series: [
        { label: "serving", values: share(figures.serving_s, figures.step_s), colour: 1, kind: "area" },
        { label: "swaps", values: share(figures.swaps.seconds, figures.step_s), colour: 2, kind: "area" },
      ],
      format: percent,
    },
    {
      title: "Wait in the queue",
      series: [
        { label: "half waited less", values: figures.queue.wait_p50_s, colour: 0, kind: "points" },
        { label: "95 % waited less", values: figures.queue.wait_p95_s, colour: 6, kind: "points" },
      ],
      format: duration,
    },
    { title: "Requests that wait", series: [{ label: "length of the queue", values: figures.queue.length, colour: 3, kind: "area" }], format: number },
    ...gpus,
  ];
}

/** Says what a chart shows to those who cannot see it: the last and the highest value of each line. */
export function inWords(title: string, series: readonly Series[], format: (value: number) => string): string {
  const lines = series.map(({ label, values }) => {
    const known = values.filter((value) => value !== null);
    const last = known.at(-1);
    return last === undefined ? `${label}: nothing` : `${label}: ${format(last)} at last, at most ${format(Math.max(...known))}`;
  });
  return `${title}. ${lines.join("; ")}.`;
}
