// Calls of the official Node client, as it comes: prints how many there were and which went wrong, as JSON.
import OpenAI from "openai";

const client = new OpenAI({ apiKey: process.env.KEY, baseURL: process.env.BASE_URL });
const model = process.env.MODEL;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const wrong = [];
let calls = 0;

async function call(name, work) {
  calls += 1;
  try {
    const why = await work();
    if (why) wrong.push(`${name}: ${why}`);
  } catch (error) {
    wrong.push(`${name}: ${error}`);
  }
}

async function refused(status, code, work) {
  try {
    await work();
  } catch (error) {
    return error.status === status && error.code === code ? "" : `${error.status} ${error.code}`;
  }
  return "it was not refused";
}

await call("models", async () => {
  const all = (await client.models.list()).data;
  return all.some((one) => one.id === model) ? "" : JSON.stringify(all);
});
await call("one model", async () => ((await client.models.retrieve(model)).id === model ? "" : "another one"));
await call("a chat", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0 });
  const { content } = answer.choices[0].message;
  return content.length > 0 && answer.usage.completion_tokens > 0 ? "" : JSON.stringify(answer);
});
await call("a stream", async () => {
  const options = { model, messages, max_tokens: 12, stream: true, stream_options: { include_usage: true } };
  let tokens = 0;
  let usage = null;
  for await (const event of await client.chat.completions.create(options)) {
    for (const choice of event.choices) tokens += choice.finish_reason ? 0 : 1;
    usage = event.usage ?? usage;
  }
  return usage && usage.completion_tokens === tokens ? "" : `${tokens} tokens, usage ${JSON.stringify(usage)}`;
});
await call("a stream that is left", async () => {
  const events = await client.chat.completions.create({ model, messages, max_tokens: 200, stream: true });
  for await (const event of events) if (event.choices.length) break;
  return "";
});
await call("a completion", async () => {
  const answer = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 8 });
  return answer.usage.completion_tokens <= 8 ? "" : JSON.stringify(answer.usage);
});
await call("an unknown model", () =>
  refused(404, "model_not_found", () => client.chat.completions.create({ model: "no-such-model", messages })),
);
await call("tools", () => {
  const tools = [{ type: "function", function: { name: "f" } }];
  return refused(400, "unsupported_parameter", () => client.chat.completions.create({ model, messages, tools }));
});
await call("a key that opens nothing", () => {
  const stranger = new OpenAI({ apiKey: "sk-none", baseURL: process.env.BASE_URL });
  return refused(401, "invalid_api_key", () => stranger.models.list());
});
console.log(JSON.stringify({ calls, wrong }));
process.exit(0);
