// Time series, drawn by uPlot in the colours of the page.
import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { theme } from "../state/theme";

export interface Series {
  label: string;
  values: readonly (number | null)[];
  /** The number of a colour of the palette. */
  colour: number;
  kind?: "line" | "bars" | "points" | "area";
}

interface ChartProps {
  /** What it shows, for those who cannot see it. */
  label: string;
  /** Moments, in seconds since the epoch. */
  times: readonly number[];
  series: readonly Series[];
  /** Puts a value into words, with its unit. */
  format: (value: number) => string;
  height?: number;
  /** Do not show dates and times along the x axis, but these words. */
  xFormat?: (value: number) => string;
}

export function Chart({ label, times, series, format, height = 200, xFormat }: ChartProps) {
  const holder = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = holder.current;
    if (element === null) return;
    let plot: uPlot | null = null;
    const data = [times, ...series.map((each) => each.values)] as uPlot.AlignedData;
    const draw = (): void => {
      plot?.destroy();
      plot = new uPlot(optionsOf(element, series, format, height, xFormat), data, element);
    };
    const stop = effect(() => {
      void theme.value;
      queueMicrotask(draw); // when the page has the new colours
    });
    const observer = new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => {
      stop();
      observer.disconnect();
      queueMicrotask(() => plot?.destroy());
    };
  }, [times, series, format, height, xFormat]);
  return (
    <figure class="chart" aria-label={label}>
      <div ref={holder} style={{ minHeight: `${height}px` }} />
      <figcaption>
        {series.map((each) => (
          <span key={each.label}>
            <i class={`swatch c${each.colour % COLOURS}`} aria-hidden="true" />
            {each.label}
          </span>
        ))}
      </figcaption>
    </figure>
  );
}

export const COLOURS = 8;

function optionsOf(
  element: HTMLElement,
  series: readonly Series[],
  format: (value: number) => string,
  height: number,
  xFormat: ((value: number) => string) | undefined,
): uPlot.Options {
  const colour = (name: string): string => drawnColour(element, name);
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  return {
    width: element.clientWidth,
    height,
    legend: { show: false },
    cursor: { y: false },
    scales: { x: { time: xFormat === undefined }, y: { range: { min: { soft: 0, mode: 1 }, max: { pad: 0.1 } } } },
    axes: [
      xFormat === undefined ? axis : { ...axis, values: (_, values) => values.map(xFormat) },
      { ...axis, size: 70, values: (_, values) => values.map(format) },
    ],
    series: [{}, ...series.map((each) => lineOf(each, colour(`--c${each.colour % COLOURS}`)))],
  };
}

/** Returns a colour of the stylesheet as it is in the present scheme: a canvas knows no variables. */
function drawnColour(element: HTMLElement, name: string): string {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  element.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color || "#888";
}

/** Returns `rgb(1, 2, 3)` as `rgba(1, 2, 3, 0.33)`. */
const thin = (colour: string): string => colour.replace(/^rgb\((.*)\)$/, "rgba($1, 0.33)");

function lineOf(series: Series, colour: string): uPlot.Series {
  const line: uPlot.Series = { label: series.label, stroke: colour, width: 2, spanGaps: false };
  if (series.kind === "bars" && uPlot.paths.bars) {
    return { ...line, fill: colour, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 40] }) };
  }
  if (series.kind === "points") return { ...line, width: 0, points: { show: true, size: 7, fill: colour } };
  return series.kind === "area" ? { ...line, fill: thin(colour) } : line;
}
