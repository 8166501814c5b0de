// The Agents SDK of OpenAI for Node, over Responses, which it speaks unless told otherwise.

import { Agent, OpenAIResponsesModel, run, setTracingDisabled, tool, webSearchTool } from '@openai/agents'
import OpenAI from 'openai'
import {
  ASKED, DOCUMENT, LARGE_PICTURE, MODEL, MORE_FIELDS, MORE_HEADERS, MORE_QUERY, PICTURE, QUESTION, QUESTIONS, REASONING_MODEL, SCHEMA, TOOL,
  drive, told, weather,
} from '../driving.mjs'

setTracingDisabled(true)

const TOOLS = { tools: [tool({ name: 'weather', description: TOOL.function.description, parameters: TOOL.function.parameters, execute: weather })] }
const PERSON = { outputType: { type: 'json_schema', name: 'Person', strict: true, schema: SCHEMA } }
const SEALED = {
  model: REASONING_MODEL,
  modelSettings: { store: false, reasoning: { effort: 'low', summary: 'auto' }, providerData: { include: ['reasoning.encrypted_content'] } },
}
const settings = modelSettings => ({ modelSettings })
const more = values => settings({ providerData: values })

const agent = ({ baseURL, key }, { model = MODEL, ...more } = {}) =>
  new Agent({ name: 'guide', model: new OpenAIResponsesModel(new OpenAI({ baseURL, apiKey: key }), model), ...more })

// The output, what was said on the way, and the model's answers with their usage.
const seen = ({ finalOutput, newItems, rawResponses }) =>
  ({ output: finalOutput, items: newItems.map(item => item.rawItem), answers: rawResponses.map(({ usage, responseId, providerData }) => ({ usage, responseId, providerData })) })

const ask = async (at, more, question = QUESTION) => seen(await run(agent(at, more), question))

// The events as they came from the model, and the error that ended them, if one did; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const events = []
  const leaving = new AbortController()
  const heard = () => ({ text: events.map(event => event.type === 'response.output_text.delta' ? event.delta : '').join(''), events })
  try {
    const running = await run(agent(at, more), QUESTION, { stream: true, signal: leaving.signal })
    for await (const event of running) {
      if (event.type !== 'raw_model_stream_event' || event.data.type !== 'model') continue
      events.push(event.data.event)
      if (leaveAt && event.data.event.delta?.includes(leaveAt)) {
        leaving.abort()
        break
      }
    }
    if (leaveAt) return heard()
    await running.completed
    return { ...heard(), ...seen(running) }
  } catch (error) {
    return { ...heard(), ...told(error) }
  }
}

const withPart = (at, part) => ask(at, {}, [{ role: 'user', content: [{ type: 'input_text', text: QUESTION }, part] }])

const refused = call => async at => {
  try {
    return await call(at)
  } catch (error) {
    return told(error)
  }
}

async function previous(at) {
  const guide = agent(at)
  const first = await run(guide, QUESTION)
  return [seen(first), seen(await run(guide, 'And on Sunday?', { previousResponseId: first.lastResponseId }))]
}

async function cookies(at) {
  const guide = agent(at)
  return [seen(await run(guide, QUESTION)), seen(await run(guide, QUESTION))]
}

async function parallel(at) {
  const guide = agent(at)
  return (await Promise.all(QUESTIONS.map(question => run(guide, question)))).map(seen)
}

drive(
  ['@openai/agents', 'openai'],
  {
    plain: at => ask(at),
    stream: at => stream(at),
    instructions: at => ask(at, { instructions: ASKED.instructions }),
    developer: at => ask(at, {}, [{ role: 'system', content: ASKED.instructions }, { role: 'user', content: QUESTION }]),
    tool: at => ask(at, TOOLS),
    'two tools': at => ask(at, TOOLS),
    'streamed tools': at => stream(at, TOOLS),
    structured: at => ask(at, PERSON, ASKED.wanted),
    vision: at => withPart(at, { type: 'input_image', image: PICTURE, detail: 'low' }),
    file: at => withPart(at, { type: 'input_file', file: DOCUMENT, filename: 'hours.pdf' }),
    reasoning: at => ask(at, { ...SEALED, ...TOOLS }),
    'streamed reasoning': at => stream(at, SEALED),
    refusal: at => stream(at),
    'web search': at => ask(at, { tools: [webSearchTool()] }),
    previous,
    truncation: at => ask(at, settings({ truncation: 'auto' })),
    incomplete: at => stream(at, settings({ maxTokens: 16 })),
    failed: at => stream(at),
    'error event': at => stream(at),
    'too long': refused(ask),
    unauthorized: refused(ask),
    busy: at => ask(at),
    down: at => ask(at),
    cut: at => stream(at),
    leave: at => stream(at, {}, 'opens'),
    parallel,
    packed: at => ask(at),
    'packed stream': at => stream(at),
    'more fields': at => ask(at, more({ extraBody: MORE_FIELDS })),
    'more query': at => ask(at, more({ extraQuery: MORE_QUERY })),
    'more headers': at => ask(at, more({ extraHeaders: MORE_HEADERS })),
    cookies,
    large: at => withPart(at, { type: 'input_image', image: LARGE_PICTURE, detail: 'high' }),
  },
  {
    background: 'does not wait for such answers',
    kept: 'does not get, list or delete answers',
    missing: 'does not get answers',
    count: 'does not count tokens',
  },
)
