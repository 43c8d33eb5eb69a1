"""The page at /: a form to try the model. One HTML file, nothing fetched from elsewhere."""

from __future__ import annotations

import html as markup

from serving.service import Service

KIND = "text/html; charset=utf-8"
_FIELDS = {
    "image": '<label for="given">An image</label><input id="given" type="file" accept="image/*" required>',
    "text": '<label for="given">A text</label><textarea id="given" rows="5" required></textarea>',
    "row": '<label for="given">A row, as JSON</label><textarea id="given" rows="5" required>{example}</textarea>',
    "arrays": '<label for="given">Inputs, as JSON</label><textarea id="given" rows="5" required>{example}</textarea>',
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b;
  background: #fff }}
label {{ display: block; margin: 1rem 0 .25rem; font-weight: 600 }}
textarea, input {{ width: 100%; font: inherit; box-sizing: border-box }}
button {{ margin: 1rem 0; padding: .5rem 1.5rem; font: inherit; background: #0b5394; color: #fff; border: 0;
  border-radius: 4px }}
pre {{ background: #f2f2f2; padding: 1rem; overflow: auto; white-space: pre-wrap }}
</style></head><body><main>
<h1>{name}</h1>
<p>Version {version}. Programs use <code>POST /v2/models/{name}/infer</code>; what it takes is said by
<a href="/v2/models/{name}">/v2/models/{name}</a>.</p>
<form id="form">{token}{field}<button>Predict</button></form>
<pre id="answer" role="status" aria-label="Answer">The answer appears here.</pre>
</main><script>
const kind = "{kind}";
document.getElementById("form").addEventListener("submit", async event => {{
  event.preventDefault();
  const given = document.getElementById("given"), token = document.getElementById("token");
  const types = {{image: "application/octet-stream", text: "text/plain"}};
  const headers = {{"content-type": types[kind] || "application/json"}};
  if (token && token.value) headers.authorization = "Bearer " + token.value;
  const shown = document.getElementById("answer");
  try {{
    const began = performance.now();
    const body = kind === "image" ? given.files[0] : given.value;
    const answer = await fetch("/predict", {{method: "POST", body, headers}});
    const text = await answer.text();
    shown.textContent = text.slice(0, 20000) + "\\n\\n" + answer.status + ", " +
      (performance.now() - began).toFixed(1) + " ms";
  }} catch (problem) {{ shown.textContent = "No answer: " + problem; }}
}});
</script></body></html>
"""
_TOKEN = '<label for="token">Token</label><input id="token" type="password" autocomplete="off">'


def html(name: str, service: Service, token: bool) -> str:
    """The page; before a model is loaded it says so."""
    model = service.current
    kind = model.process.kind if model else "arrays"
    example = "{}"
    if model and kind == "row":
        columns = [c if isinstance(c, str) else c["name"] for c in model.process.options.get("columns", ())]
        example = "{" + ", ".join(f'"{column}": 0' for column in columns) + "}"
    elif model and kind == "arrays":
        example = "{" + ", ".join(f'"{port.name}": []' for port in model.about.inputs) + "}"
    return _PAGE.format(
        name=markup.escape(name),
        version=markup.escape(model.about.label if model else "none yet"),
        kind=kind,
        token=_TOKEN if token else "",
        field=_FIELDS[kind].replace("{example}", markup.escape(example)),
    )
