// What clients ask and asked: the requests in flight, and those that have ended.
import { InFlightRequests } from "../activity/in_flight";
import { PastRequests } from "../activity/past";
import { isAdmin } from "../state/session";

export default function Activity() {
  return (
    <>
      <h1>Activity</h1>
      {isAdmin.value && <InFlightRequests />}
      <PastRequests />
    </>
  );
}
