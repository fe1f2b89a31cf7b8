// How fast the last requests were: two histograms, of those that the filters choose.
import { query } from "../api";
import { count, duration, rate } from "../components/format";
import { state } from "../state/events";
import { useLoaded } from "../state/loaded";
import type { Maybe } from "../types";

export interface Histogram {
  count: number;
  p50: Maybe<number>;
  p95: Maybe<number>;
  bins: { from: number; to: number | null; count: number }[];
}

interface Histograms {
  first_token_s: Histogram;
  tokens_per_s: Histogram;
}

const REFRESH_MS = 10_000;

/** As `duration`, in milliseconds where that says more. */
const wait = (seconds: Maybe<number>): string => (seconds != null && seconds < 0.0995 ? `${Math.round(seconds * 1000)} ms` : duration(seconds));

export function Speeds({ filters }: { filters: Record<string, string> }) {
  const { data } = useLoaded<Histograms>(`/admin/activity/histogram${query(filters)}`, state.value?.requests_ended, REFRESH_MS);
  if (!data?.first_token_s || !data.tokens_per_s || data.first_token_s.count + data.tokens_per_s.count === 0) return null;
  return (
    <div class="histograms">
      <Bars title="First token" histogram={data.first_token_s} format={wait} />
      <Bars title="Tokens/s" histogram={data.tokens_per_s} format={rate} />
    </div>
  );
}

/** Shows a histogram: a bar for each of its bins, and in words what half of all and most are below. */
export function Bars({ title, histogram, format }: { title: string; histogram: Histogram; format: (value: Maybe<number>) => string }) {
  const { bins, p50, p95 } = histogram;
  if (histogram.count === 0) return null;
  const most = Math.max(...bins.map((bin) => bin.count));
  const between = ({ from, to }: Histogram["bins"][number]): string => (to === null ? `${format(from)} and more` : `${format(from)} to ${format(to)}`);
  const words = `half below ${format(p50)}, 95 % below ${format(p95)}`;
  return (
    <figure class="histogram" aria-label={`${title} of ${count(histogram.count)} requests: ${words}`}>
      <figcaption>
        <strong>{title}</strong> <span class="soft">{words}</span>
      </figcaption>
      <div class="bins" role="list">
        {bins.map((bin) => (
          <div key={bin.from} role="listitem" class="bin" title={`${between(bin)}: ${count(bin.count)}`} aria-label={`${between(bin)}: ${count(bin.count)}`}>
            <span style={{ height: `${(100 * bin.count) / most}%` }} />
          </div>
        ))}
      </div>
      <div class="line soft ends">
        <span>{format(bins[0]?.from)}</span>
        <span>{format(bins.at(-1)?.to ?? bins.at(-1)?.from)}</span>
      </div>
    </figure>
  );
}
