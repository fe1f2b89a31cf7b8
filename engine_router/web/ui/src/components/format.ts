// Numbers as people read them. What is not known is an empty text, never a guess.
import type { Maybe } from "../types";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** `24.1 GiB` */
export function bytes(value: Maybe<number>): string {
  if (value == null) return "";
  let amount = Math.abs(value);
  let unit = 0;
  while (amount >= 1000 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  return `${value < 0 ? "−" : ""}${amount.toFixed(unit < 2 || amount >= 100 ? 0 : 1)} ${UNITS[unit]}`;
}

/** `0.42 s`, `12 s`, `3 min 05 s`, `2 h 14 min`, `3 d 4 h` */
export function duration(seconds: Maybe<number>): string {
  if (seconds == null) return "";
  if (seconds < 0) return "0 s";
  if (seconds < 9.95) return `${seconds.toFixed(seconds < 0.995 ? 2 : 1)} s`;
  const whole = Math.round(seconds);
  if (whole < 120) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** As `duration`, in whole seconds: for what is counted while one looks. */
export function counted(seconds: Maybe<number>): string {
  return seconds == null ? "" : seconds < 10 ? `${Math.max(0, Math.floor(seconds))} s` : duration(seconds);
}

/** The time of day; with the date where it is another day. */
export function time(at: Maybe<number>): string {
  if (at == null) return "";
  const moment = new Date(at * 1000);
  const isToday = moment.toDateString() === new Date().toDateString();
  return isToday ? moment.toLocaleTimeString() : moment.toLocaleString();
}

/** `12 s ago` */
export function ago(at: Maybe<number>, now: number): string {
  if (at == null) return "";
  const since = Math.round(now - at);
  return since < 2 ? "now" : `${since < 10 ? `${since} s` : duration(since)} ago`;
}

/** `1,234,567`, as the browser's language has it. */
export function count(value: Maybe<number>): string {
  return value == null ? "" : value.toLocaleString();
}

/** `41.2`, or `412` */
export function rate(perSecond: Maybe<number>): string {
  return perSecond == null ? "" : perSecond.toFixed(perSecond < 100 ? 1 : 0);
}

/** `32k` for 32,768 */
export function context(tokens: Maybe<number>): string {
  if (tokens == null) return "";
  return tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}k` : count(tokens);
}

// Controls, and what changes the direction of the text around it.
// eslint-disable-next-line no-control-regex
const DISORDERLY = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** A name as part of a sentence that is plain text, as in a title: what could change the sentence's order is replaced. */
export function inSentence(name: string): string {
  return name.replace(DISORDERLY, "\ufffd");
}

const pad = (value: number): string => String(value).padStart(2, "0");
