// A chat wrapper as people write it with express: the browser's question goes to the endpoint, its stream comes back.

import express from "express";
import OpenAI from "openai";

const openai = new OpenAI({ apiKey: "none" });
const app = express();
app.use(express.json({ limit: "10mb" }));

app.post("/chat", async (request, response, next) => {
  try {
    const stream = await openai.chat.completions.create({
      model: "test",
      messages: request.body.messages,
      temperature: 0,
      stream: true,
    });
    response.on("close", () => stream.controller.abort());
    response.type("text/plain");
    for await (const chunk of stream) response.write(chunk.choices[0]?.delta?.content ?? "");
    response.end();
  } catch (error) {
    next(error);
  }
});

app.use((error, request, response, next) => {
  response.status(error.status ?? 500).json({ message: error.message, code: error.code });
});

const server = app.listen(0, "127.0.0.1", () => console.log(server.address().port));
