// What the router says of itself, as it comes with `/admin/events?patches=1`. Times are seconds, memory is bytes.
// A member that is not known is absent, or null.

export type Maybe<T> = T | null | undefined;

export interface PoolMemory {
  total_bytes?: Maybe<number>;
  free_bytes?: Maybe<number>;
  foreign_bytes?: Maybe<number>;
  asleep_bytes?: Maybe<number>;
}

export interface OtherProgram {
  name: string;
  pid: number;
  tenant?: Maybe<string>;
  held_bytes?: Maybe<number>;
}

export interface Resident {
  resident: string;
  engine: string;
  model?: Maybe<string>;
  phase: string;
  in_flight: number;
  max_in_flight?: Maybe<number>;
  waiting?: Maybe<number>;
  started_at?: Maybe<number>;
  idle_since_at?: Maybe<number>;
  held_until_at?: Maybe<number>;
  expires_at?: Maybe<number>;
  footprint_bytes?: Maybe<number>;
  need_bytes?: Maybe<number>;
  group?: Maybe<string>;
  pinned?: Maybe<boolean>;
  adopted?: Maybe<boolean>;
  error?: Maybe<string>;
  load_cost_s?: Maybe<number>;
  unload_cost_s?: Maybe<number>;
}

export interface QueueEntry {
  id?: Maybe<string>;
  place: number;
  model: string;
  resident?: Maybe<string>;
  reason?: Maybe<string>;
  estimate_s?: Maybe<number>;
  expected_at?: Maybe<number>;
  arrived_at?: Maybe<number>;
  waited_s?: Maybe<number>;
  priority?: Maybe<string>;
  client?: Maybe<string>;
}

export interface SwapPhase {
  name: string;
  usual_s?: Maybe<number>;
  took_s?: Maybe<number>;
}

export interface Swap {
  source?: Maybe<string>;
  target?: Maybe<string>;
  cause: string;
  phase?: Maybe<string>;
  began_at?: Maybe<number>;
  phase_began_at?: Maybe<number>;
  expected_s?: Maybe<number>;
  expected_total_s?: Maybe<number>;
  phases?: Maybe<SwapPhase[]>;
}

export interface Failure {
  error: string;
  count: number;
  again_at?: Maybe<number>;
}

export interface Pool {
  gauge: string;
  mode: string;
  budget_bytes?: Maybe<number>;
  memory?: Maybe<PoolMemory>;
  other_programs?: Maybe<readonly OtherProgram[]>;
  residents: Resident[];
  asleep?: Maybe<string[]>;
  settling?: Maybe<string[]>;
  queue?: Maybe<QueueEntry[]>;
  queue_length?: Maybe<number>;
  swaps: Swap[];
  failed: Record<string, Failure>;
  waiting: Record<string, number>;
}

export interface Engine {
  type: string;
  pool: string;
  state: string;
  base_url?: Maybe<string>;
  /** What a peer tells of itself; absent for what is none. */
  peer?: Maybe<Peer>;
  /** What is kept of conversations with it; absent where it is to keep none. */
  kept_context?: Maybe<KeptContext>;
}

export interface Peer {
  /** The router that it is, such as `engine-router`; absent before it has told anything. */
  program?: Maybe<string>;
  version?: Maybe<string>;
  /** Why it tells nothing now. */
  fault?: Maybe<string>;
  in_flight?: Maybe<number>;
  waiting?: Maybe<number>;
  ready?: Maybe<string[]>;
  swaps?: Maybe<PeerSwap[]>;
}

export interface PeerSwap {
  words: string;
  elapsed_s?: Maybe<number>;
  expected_s?: Maybe<number>;
}

export interface KeptContext {
  keeps: boolean;
  conversations: number;
  size_bytes: number;
  restores: Record<string, number>;
  reused_tokens: Record<string, number>;
}

export interface Model {
  engine: string;
  state: string;
  origin?: Maybe<string>;
  aliases?: Maybe<string[]>;
  resident?: Maybe<string>;
  need_bytes?: Maybe<number>;
  context?: Maybe<number>;
  capabilities?: Maybe<string[]>;
  last_use_at?: Maybe<number>;
  tokens_per_s?: Maybe<number>;
  load_cost_s?: Maybe<number>;
  unload_cost_s?: Maybe<number>;
}

export interface Route {
  strategy: string;
  models: string[];
  /** The model that it would choose now for a request that meets no rule's conditions; absent where there is none. */
  leads_to?: Maybe<string>;
}

export interface Decision {
  at: number;
  pool?: Maybe<string>;
  text: string;
}

export interface Notice {
  at: number;
  event?: Maybe<string>;
  severity?: Maybe<string>;
  message: string;
}

export interface JobProgress {
  step: string;
  note?: Maybe<string>;
  done_bytes: number;
  total_bytes?: Maybe<number>;
  bytes_per_s?: Maybe<number>;
  left_s?: Maybe<number>;
}

export interface Job {
  job: string;
  kind: string;
  subject: string;
  state: string;
  progress?: Maybe<JobProgress>;
  error?: Maybe<{ message: string }>;
}

export interface RouterState {
  version: string;
  started_at?: Maybe<number>;
  uptime_s: number;
  adopting?: Maybe<boolean>;
  pools: Record<string, Pool>;
  engines: Record<string, Engine>;
  models: Record<string, Model>;
  routes?: Maybe<Record<string, Route>>;
  decisions?: Maybe<Decision[]>;
  notices?: Maybe<Notice[]>;
  jobs?: Maybe<Record<string, Job>>;
  in_flight?: Maybe<number>;
  waiting?: Maybe<number>;
  requests_ended?: Maybe<number>;
}

export interface Session {
  authenticated: boolean;
  key: string | null;
  admin: boolean;
  asks_for_key: boolean;
  edit_config?: Maybe<boolean>;
}
