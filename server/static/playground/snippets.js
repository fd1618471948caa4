// What was just done, as commands to run elsewhere.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A value as Python writes it. */
export function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

export function curlOf(url, body, withKey) {
  const key = withKey ? ` \\\n  -H "Authorization: Bearer $GLM_INFILL_API_KEY"` : "";
  return `curl -s ${url} -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

export function pythonOf(url, body, withKey) {
  const headers = withKey ? `,\n    headers={"Authorization": "Bearer " + os.environ["GLM_INFILL_API_KEY"]}` : "";
  return `${withKey ? "import os\n\n" : ""}import httpx\n\nanswer = httpx.post(\n    "${url}",\n    json=${python(body)}${headers},\n    timeout=600,\n)\nprint(answer.raise_for_status().json())\n`;
}
