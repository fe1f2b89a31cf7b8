// Requests as `/admin/requests` and `/admin/activity` tell of them. Times are seconds; what is not known is null.

export interface InFlight {
  id: string;
  at: number;
  model: string | null;
  engine: string | null;
  endpoint: string;
  key: string | null;
  client: string | null;
  state: "waiting" | "running";
  elapsed_s: number;
  first_token_s: number | null;
  tokens_out: number | null;
  tokens_per_s: number | null;
  /** Events of a streamed answer in a second, while it comes. Most engines send one for each token. */
  frames_per_s: number | null;
}

export interface Past {
  /** The number that it has in the history. */
  row: number;
  id: string;
  at: number;
  model: string | null;
  engine: string | null;
  endpoint: string;
  key: string | null;
  client: string | null;
  status: number;
  tokens_in: number | null;
  tokens_cached: number | null;
  tokens_out: number | null;
  first_token_s: number | null;
  tokens_per_s: number | null;
  queue_wait_s: number | null;
  load_wait_s: number | null;
  duration_s: number;
  error: string | null;
  has_capture?: boolean;
}

export interface PastPage {
  enabled: boolean;
  why_off: string | null;
  requests: Past[];
  total: number;
  limit: number;
  offset: number;
}

export interface Body {
  bytes: number;
  is_truncated: boolean;
  /** The body, where it is text; else it is in `base64`. */
  text?: string;
  base64?: string;
}

export interface Side {
  headers?: [string, string][] | Record<string, string>;
  body?: Body | null;
  body_note?: string | null;
}

export interface Capture {
  request?: Side;
  answer?: Side;
}
