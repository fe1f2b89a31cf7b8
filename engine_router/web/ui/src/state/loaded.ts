// Data that a view loads from the router, and loads again when it may have changed.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { get } from "../api";

export interface Loaded<T> {
  /** What came last; null until then. It stays while newer data is on its way. */
  data: T | null;
  /** Why there is no newer data; empty where there is. */
  error: string;
  reload: () => void;
}

/** Loads a path, and again whenever the path or `version` changes; at most once in `pauseMs`. */
export function useLoaded<T>(path: string, version: unknown = 0, pauseMs = 0): Loaded<T> {
  const [data, setData] = useState<T | null>(null);
  const [error, setError] = useState("");
  const [wish, setWish] = useState(0);
  const last = useRef({ path: "", at: -Infinity });
  useEffect(() => {
    const gone = new AbortController();
    const isSame = last.current.path === path;
    const wait = isSame ? Math.max(0, last.current.at + pauseMs - performance.now()) : 0;
    const timer = setTimeout(() => {
      last.current = { path, at: performance.now() };
      get<T>(path, gone.signal).then(
        (fresh) => {
          if (gone.signal.aborted) return;
          setData(() => fresh);
          setError("");
        },
        (failure: unknown) => {
          if (!gone.signal.aborted) setError(failure instanceof Error ? failure.message : String(failure));
        },
      );
    }, wait);
    return () => {
      clearTimeout(timer);
      gone.abort();
    };
  }, [path, version, wish, pauseMs]);
  return { data, error, reload: useCallback(() => setWish((before) => before + 1), []) };
}

/** Counts up every `everyMs` while it is `wanted` and the page is seen. */
export function useBeat(everyMs: number, wanted: boolean): number {
  const [beat, setBeat] = useState(0);
  useEffect(() => {
    if (!wanted) return;
    const timer = setInterval(() => document.hidden || setBeat((before) => before + 1), everyMs);
    return () => clearInterval(timer);
  }, [everyMs, wanted]);
  return beat;
}
