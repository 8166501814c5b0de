// The SDK of OpenAI for Node, over Responses.

import OpenAI from 'openai'
import {
  ASKED, DOCUMENT, LARGE_PICTURE, MODEL, MORE_FIELDS, MORE_HEADERS, MORE_QUERY, PICTURE, QUESTION, QUESTIONS, REASONING_MODEL, SCHEMA, TOOL,
  drive, told, weather,
} from '../driving.mjs'

const FUNCTION = { type: 'function', ...TOOL.function }
const PERSON = { type: 'json_schema', name: 'Person', strict: true, schema: SCHEMA }
const SEALED = { model: REASONING_MODEL, store: false, include: ['reasoning.encrypted_content'], reasoning: { summary: 'auto' } }
const USER = { role: 'user', content: QUESTION }

const client = ({ baseURL, key }) => new OpenAI({ baseURL, apiKey: key })
const ask = (at, more = {}, options = {}) =>
  client(at).responses.create({ model: MODEL, input: QUESTION, ...more }, options)

// All events that came, and the error that ended them, if one did; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const events = []
  let ending = {}
  try {
    for await (const event of await ask(at, { stream: true, ...more })) {
      events.push(event)
      if (leaveAt && event.delta?.includes(leaveAt)) break
    }
  } catch (error) {
    ending = told(error)
  }
  const text = events.map(event => event.type === 'response.output_text.delta' ? event.delta : '').join('')
  return { text, events, ...ending }
}

const resultsOf = output => output.filter(item => item.type === 'function_call')
  .map(item => ({ type: 'function_call_output', call_id: item.call_id, output: weather(JSON.parse(item.arguments)) }))

async function tools(at, more = {}) {
  const first = await ask(at, { tools: [FUNCTION], ...more })
  return [first, await ask(at, { input: [USER, ...first.output, ...resultsOf(first.output)], tools: [FUNCTION], ...more })]
}

// By the SDK's own helper, which puts the calls together.
async function streamedTools(at) {
  const running = client(at).responses.stream({ model: MODEL, input: QUESTION, tools: [FUNCTION] })
  const { output } = await running.finalResponse()
  const calls = output.map(({ parsed_arguments, ...item }) => item)
  return [output, await ask(at, { input: [USER, ...calls, ...resultsOf(output)], tools: [FUNCTION] })]
}

const withPart = (at, part) =>
  ask(at, { input: [{ role: 'user', content: [{ type: 'input_text', text: QUESTION }, part] }] })

const refused = call => async at => {
  try {
    return await call(at)
  } catch (error) {
    return told(error)
  }
}

async function previous(at) {
  const first = await ask(at)
  return [first, await ask(at, { input: 'And on Sunday?', previous_response_id: first.id })]
}

async function background(at) {
  const queued = await ask(at, { background: true })
  return [queued, await client(at).responses.retrieve(queued.id), await client(at).responses.cancel(queued.id)]
}

async function kept(at) {
  const made = await ask(at, { store: true })
  const found = await client(at).responses.retrieve(made.id, { include: ['message.output_text.logprobs'] })
  const items = []
  for await (const item of client(at).responses.inputItems.list(made.id, { limit: 5, order: 'asc' })) items.push(item)
  await client(at).responses.delete(made.id)
  return [made, found, items]
}

drive(
  ['openai'],
  {
    plain: at => ask(at),
    stream,
    instructions: at => ask(at, { instructions: ASKED.instructions }),
    developer: at => ask(at, { input: [{ role: 'developer', content: ASKED.instructions }, USER] }),
    tool: tools,
    'two tools': tools,
    'streamed tools': streamedTools,
    structured: at => ask(at, { input: ASKED.wanted, text: { format: PERSON } }),
    vision: at => withPart(at, { type: 'input_image', image_url: PICTURE, detail: 'low' }),
    file: at => withPart(at, { type: 'input_file', filename: 'hours.pdf', file_data: DOCUMENT }),
    reasoning: at => tools(at, SEALED),
    'streamed reasoning': at => stream(at, { reasoning: { effort: 'low', summary: 'auto' } }),
    refusal: at => stream(at),
    'web search': at => ask(at, { tools: [{ type: 'web_search' }] }),
    previous,
    background,
    kept,
    truncation: at => ask(at, { truncation: 'auto' }),
    incomplete: at => stream(at, { max_output_tokens: 16 }),
    failed: at => stream(at),
    'error event': at => stream(at),
    'too long': refused(ask),
    unauthorized: refused(ask),
    missing: refused(at => client(at).responses.retrieve('resp_68f1a0c2')),
    busy: at => ask(at),
    down: at => ask(at),
    cut: at => stream(at),
    leave: at => stream(at, {}, 'opens'),
    parallel: at => Promise.all(QUESTIONS.map(input => ask(at, { input }))),
    packed: at => ask(at),
    'packed stream': at => stream(at),
    'more fields': at => ask(at, MORE_FIELDS),
    'more query': at => ask(at, {}, { query: MORE_QUERY }),
    'more headers': at => ask(at, {}, { headers: MORE_HEADERS }),
    cookies: async at => [await ask(at), await ask(at)],
    large: at => withPart(at, { type: 'input_image', image_url: LARGE_PICTURE, detail: 'high' }),
    count: at => client(at).responses.inputTokens.count({ model: MODEL, input: QUESTION }),
  },
  {},
)
