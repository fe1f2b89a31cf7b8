// All models, or the one that the address names.
import { place } from "../router";
import { ModelList } from "./models/list";
import { ModelPage } from "./models/page";

export default function Models() {
  const { rest } = place.value;
  return rest ? <ModelPage key={rest} id={rest} /> : <ModelList />;
}
