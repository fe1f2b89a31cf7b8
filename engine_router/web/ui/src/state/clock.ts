// The router's time. Moments come from the router, so the page has to reckon by its clock, not by the browser's.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

let aheadS = 0;
let watchers = 0;
let timer: ReturnType<typeof setInterval> | undefined;

/** The router's time, in seconds since the epoch. It moves once a second while something on the page shows it. */
export const now = signal(Date.now() / 1000);

/** Returns the router's time, in seconds since the epoch. */
export const serverTime = (): number => Date.now() / 1000 + aheadS;

const tick = (): void => {
  now.value = serverTime();
};

/** Sets the router's clock. */
export function setServerTime(seconds: number): void {
  aheadS = seconds - Date.now() / 1000;
  tick();
}

/** Returns the router's time, and has the component rendered again every second. */
export function useNow(): number {
  useEffect(() => {
    watchers += 1;
    if (watchers === 1) timer = setInterval(() => document.hidden || tick(), 1000);
    return () => {
      watchers -= 1;
      if (watchers === 0) clearInterval(timer);
    };
  }, []);
  return now.value;
}
