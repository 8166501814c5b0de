// The SDK of Anthropic for Node.

import Anthropic from '@anthropic-ai/sdk'
import {
  ASKED, CLAUDE, LARGE, MORE_FIELDS, MORE_HEADERS, MORE_QUERY, QUESTION, QUESTIONS, SCHEMA, TOOL, drive, rootOf, told, weather,
} from '../driving.mjs'

const USER = { role: 'user', content: QUESTION }
const ASKING = { type: 'text', text: QUESTION }
const WEATHER = { name: 'weather', description: TOOL.function.description, input_schema: TOOL.function.parameters }
const MARK = { cache_control: { type: 'ephemeral' } }
const LONG_MARK = { cache_control: { type: 'ephemeral', ttl: '1h' } }
const THINKING = { thinking: { type: 'enabled', budget_tokens: 1024 }, max_tokens: 2048 }
const PERSON = { format: { type: 'json_schema', schema: SCHEMA } }
const HOURS = {
  type: 'document',
  source: { type: 'text', media_type: 'text/plain', data: 'Opens at nine. Closes at ten.' },
  title: 'Hours',
  citations: { enabled: true },
}

const client = at => new Anthropic({ baseURL: rootOf(at), apiKey: at.key })
const ask = (at, more = {}, options = {}) =>
  client(at).messages.create({ model: CLAUDE, max_tokens: 512, messages: [USER], ...more }, options)

// All events that came, and the error that ended them, if one did; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const events = []
  let ending = {}
  try {
    for await (const event of await ask(at, { stream: true, ...more })) {
      events.push(event)
      if (leaveAt && event.delta?.text?.includes(leaveAt)) break
    }
  } catch (error) {
    ending = told(error)
  }
  return { text: events.map(event => event.delta?.text ?? '').join(''), events, ...ending }
}

const resultsOf = content => ({
  role: 'user',
  content: content.filter(block => block.type === 'tool_use')
    .map(block => ({ type: 'tool_result', tool_use_id: block.id, content: weather(block.input) })),
})

async function tools(at, more = {}) {
  const first = await ask(at, { tools: [WEATHER], ...more })
  const messages = [USER, { role: 'assistant', content: first.content }, resultsOf(first.content)]
  return [first, await ask(at, { tools: [WEATHER], ...more, messages })]
}

// By the SDK's own helper, which puts the blocks together.
async function streamedTools(at) {
  const running = client(at).messages.stream({ model: CLAUDE, max_tokens: 512, messages: [USER], tools: [WEATHER] })
  const first = await running.finalMessage()
  const messages = [USER, { role: 'assistant', content: first.content }, resultsOf(first.content)]
  return [first, await ask(at, { tools: [WEATHER], messages })]
}

const withBlock = (at, type, media_type, data) =>
  ask(at, { messages: [{ role: 'user', content: [{ type, source: { type: 'base64', media_type, data } }, ASKING] }] })

const cached = at => ask(at, {
  messages: [{ role: 'user', content: [{ ...ASKING, ...MARK }] }],
  system: [{ type: 'text', text: 'You are a guide.' }, { type: 'text', text: ASKED.instructions, ...LONG_MARK }],
  tools: [{ ...WEATHER, ...LONG_MARK }],
})

const refused = call => async at => {
  try {
    return await call(at)
  } catch (error) {
    return { ...told(error), request: error.requestID }
  }
}

const beta = at => client(at).beta.messages.create({
  model: CLAUDE, max_tokens: 512, messages: [USER], betas: ['context-1m-2025-08-07', 'interleaved-thinking-2025-05-14'],
})

async function batch(at) {
  const { batches } = client(at).messages
  const begun = await batches.create({ requests: [{ custom_id: 'a', params: { model: CLAUDE, max_tokens: 512, messages: [USER] } }] })
  return [begun, await batches.retrieve(begun.id), await batches.cancel(begun.id)]
}

async function models(at) {
  const names = []
  for await (const model of client(at).models.list({ limit: 5 })) names.push(model)
  return names
}

drive(
  ['@anthropic-ai/sdk'],
  {
    plain: at => ask(at),
    stream: at => stream(at),
    system: at => ask(at, { system: ASKED.instructions }),
    cached,
    tool: at => tools(at),
    'two tools': at => tools(at),
    'streamed tools': streamedTools,
    structured: at => ask(at, { messages: [{ role: 'user', content: ASKED.wanted }], output_config: PERSON }),
    vision: at => withBlock(at, 'image', 'image/png', ASKED.picture),
    document: at => withBlock(at, 'document', 'application/pdf', ASKED.document),
    citations: at => stream(at, { messages: [{ role: 'user', content: [HOURS, ASKING] }] }),
    thinking: at => tools(at, THINKING),
    'streamed thinking': at => stream(at, THINKING),
    'web search': at => ask(at, { tools: [{ type: 'web_search_20250305', name: 'web_search', max_uses: 2 }] }),
    'max tokens': at => stream(at, { max_tokens: 16 }),
    'stop sequence': at => ask(at, { stop_sequences: ['NINE'] }),
    refusal: at => ask(at),
    beta,
    count: at => client(at).messages.countTokens({ model: CLAUDE, messages: [USER], system: ASKED.instructions, tools: [WEATHER] }),
    batch,
    models,
    'too long': refused(ask),
    unauthorized: refused(ask),
    missing: refused(at => ask(at, { model: 'claude-3-opus-20240229' })),
    busy: at => ask(at),
    overloaded: at => ask(at),
    down: at => ask(at),
    'error event': at => stream(at),
    cut: at => stream(at),
    leave: at => stream(at, {}, 'opens'),
    parallel: at => Promise.all(QUESTIONS.map(content => ask(at, { messages: [{ role: 'user', content }] }))),
    packed: at => ask(at),
    'packed stream': at => stream(at),
    'more fields': at => ask(at, MORE_FIELDS),
    'more query': at => ask(at, {}, { query: MORE_QUERY }),
    'more headers': at => ask(at, {}, { headers: MORE_HEADERS }),
    cookies: async at => [await ask(at), await ask(at)],
    large: at => withBlock(at, 'image', 'image/png', LARGE),
  },
  {},
)
