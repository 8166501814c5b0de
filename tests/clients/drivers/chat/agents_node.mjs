// The Agents SDK of OpenAI for Node, over Chat Completions.

import { Agent, OpenAIChatCompletionsModel, run, setTracingDisabled, tool } from '@openai/agents'
import OpenAI from 'openai'
import { ASKED, MODEL, MORE_FIELDS, MORE_QUERY, PICTURE, QUESTION, QUESTIONS, SCHEMA, TOOL, drive, told, weather } from '../driving.mjs'

setTracingDisabled(true)

const TOOLS = { tools: [tool({ name: 'weather', description: TOOL.function.description, parameters: TOOL.function.parameters, execute: weather })] }
const PERSON = { outputType: { type: 'json_schema', name: 'Person', strict: true, schema: SCHEMA } }
const settings = values => ({ modelSettings: { providerData: values } })

const agent = ({ baseURL, key }, more = {}, options = {}) => {
  const model = new OpenAIChatCompletionsModel(new OpenAI({ baseURL, apiKey: key, ...options }), MODEL)
  return new Agent({ name: 'guide', model, ...more })
}

// The output, what was said on the way, and the model's answers with their usage.
const seen = ({ finalOutput, newItems, rawResponses }) =>
  ({ output: finalOutput, items: newItems.map(item => item.rawItem), answers: rawResponses.map(({ usage, responseId, providerData }) => ({ usage, responseId, providerData })) })

const ask = async (at, more, question = QUESTION, options = {}) => seen(await run(agent(at, more, options), question))

// The texts as they came, and the error that ended them, if one did; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const texts = []
  const leaving = new AbortController()
  try {
    const running = await run(agent(at, more), QUESTION, { stream: true, signal: leaving.signal })
    for await (const event of running) {
      if (event.type !== 'raw_model_stream_event' || event.data.type !== 'output_text_delta') continue
      texts.push(event.data.delta)
      if (leaveAt && event.data.delta.includes(leaveAt)) {
        leaving.abort()
        break
      }
    }
    if (leaveAt) return { text: texts.join(''), texts }
    await running.completed
    return { text: texts.join(''), texts, ...seen(running) }
  } catch (error) {
    return { text: texts.join(''), texts, ...told(error) }
  }
}

const withPicture = [{ role: 'user', content: [{ type: 'input_text', text: QUESTION }, { type: 'input_image', image: PICTURE, detail: 'low' }] }]

async function refused(at) {
  try {
    return await ask(at)
  } catch (error) {
    return told(error)
  }
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
    'stream usage': at => stream(at),
    tool: at => ask(at, TOOLS),
    'two tools': at => ask(at, TOOLS),
    'streamed tools': at => stream(at, TOOLS),
    structured: at => ask(at, PERSON, ASKED.wanted),
    vision: at => ask(at, {}, withPicture),
    logprobs: at => ask(at, settings({ logprobs: true, top_logprobs: 2 })),
    'too long': refused,
    busy: at => ask(at),
    cut: at => stream(at),
    leave: at => stream(at, {}, 'opens'),
    parallel,
    packed: at => ask(at),
    'packed stream': at => stream(at),
    'more fields': at => ask(at, settings(MORE_FIELDS)),
    'more query': at => ask(at, {}, QUESTION, { defaultQuery: MORE_QUERY }),
    cookies,
  },
  {
    'two answers': 'asks for one answer only',
    developer: 'writes instructions as the system role',
    embeddings: 'has no embeddings',
    models: 'does not list models',
  },
)
