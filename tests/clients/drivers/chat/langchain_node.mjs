// LangChain's ChatOpenAI and OpenAIEmbeddings for Node.

import { AIMessage, ChatMessage, HumanMessage, ToolMessage } from '@langchain/core/messages'
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { ASKED, MODEL, MORE_FIELDS, MORE_QUERY, PICTURE, QUESTION, QUESTIONS, SCHEMA, TOOL, drive, told, weather } from '../driving.mjs'

const USER = new HumanMessage(QUESTION)

const model = ({ baseURL, key }, settings = {}, configuration = {}) =>
  new ChatOpenAI({ model: MODEL, apiKey: key, useResponsesApi: false, configuration: { baseURL, ...configuration }, ...settings })

// A message as a program sees it; ids that LangChain makes by chance aside.
const seen = ({ content, additional_kwargs, response_metadata, usage_metadata, tool_calls }) =>
  ({ content, additional_kwargs, response_metadata, usage_metadata, tool_calls })

const ask = async (at, settings, messages = [USER], configuration = {}) =>
  seen(await model(at, settings, configuration).invoke(messages))

// The chunks that came, and the error that ended them, if one did; leaves at a word where one is given.
async function stream(at, settings = {}, leaveAt = undefined) {
  const chunks = []
  let ending = {}
  try {
    for await (const chunk of await model(at, settings).stream([USER])) {
      chunks.push(seen(chunk))
      if (leaveAt && chunk.content.includes(leaveAt)) break
    }
  } catch (error) {
    ending = told(error)
  }
  return { text: chunks.map(chunk => chunk.content).join(''), chunks, ...ending }
}

const resultsOf = said => said.tool_calls.map(call => new ToolMessage({ content: weather(call.args), tool_call_id: call.id }))

async function tools(at) {
  const bound = model(at).bindTools([TOOL])
  const said = await bound.invoke([USER])
  return [seen(said), seen(await bound.invoke([USER, said, ...resultsOf(said)]))]
}

async function streamedTools(at) {
  const bound = model(at).bindTools([TOOL])
  let whole
  for await (const chunk of await bound.stream([USER])) whole = whole ? whole.concat(chunk) : chunk
  const said = new AIMessage({ content: whole.content, tool_calls: whole.tool_calls })
  return [seen(whole), seen(await bound.invoke([USER, said, ...resultsOf(said)]))]
}

async function refused(at) {
  try {
    return await ask(at)
  } catch (error) {
    return told(error)
  }
}

async function cookies(at) {
  const chat = model(at)
  return [seen(await chat.invoke([USER])), seen(await chat.invoke([USER]))]
}

async function twoAnswers(at) {
  const made = await model(at, { n: 2 }).generate([[USER]])
  return made.generations[0].map(one => seen(one.message))
}

const picture = new HumanMessage({ content: [{ type: 'text', text: QUESTION }, { type: 'image_url', image_url: { url: PICTURE } }] })
const developer = new ChatMessage({ content: ASKED.instructions, role: 'developer' })

drive(
  ['@langchain/openai', '@langchain/core'],
  {
    plain: at => ask(at),
    stream: at => stream(at),
    'stream usage': at => stream(at, { streamUsage: true }),
    tool: tools,
    'two tools': tools,
    'streamed tools': streamedTools,
    structured: at => model(at).withStructuredOutput(SCHEMA, { name: 'Person', method: 'jsonSchema' }).invoke(ASKED.wanted),
    vision: at => ask(at, {}, [picture]),
    'two answers': twoAnswers,
    logprobs: at => ask(at, { logprobs: true, topLogprobs: 2 }),
    developer: at => ask(at, {}, [developer, USER]),
    'too long': refused,
    busy: at => ask(at),
    cut: at => stream(at),
    leave: at => stream(at, {}, 'opens'),
    parallel: async at => (await model(at).batch(QUESTIONS)).map(seen),
    packed: at => ask(at),
    'packed stream': at => stream(at),
    'more fields': at => ask(at, { modelKwargs: MORE_FIELDS }),
    'more query': at => ask(at, {}, [USER], { defaultQuery: MORE_QUERY }),
    cookies,
    embeddings: at =>
      new OpenAIEmbeddings({ model: ASKED.embedding_model, apiKey: at.key, configuration: { baseURL: at.baseURL } }).embedDocuments([QUESTION, 'Hi.']),
  },
  { models: 'does not list models' },
)
