# instructor and pydantic-ai, each as it comes, against a gateway before llama.cpp's server.
import os
from typing import Literal

import instructor
import openai
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url = os.environ["GATEWAY"] + "/v1"


class Place(BaseModel):
    city: Literal["Rome", "Paris"]
    indoors: bool


asked = "Where is it? It rains in Rome."
client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="none", timeout=240), mode=instructor.Mode.TOOLS)
place = client.chat.completions.create(
    model="smol", response_model=Place, messages=[{"role": "user", "content": asked}], temperature=0, max_tokens=80)
assert isinstance(place, Place), place

model = OpenAIChatModel("smol", provider=OpenAIProvider(base_url=url, api_key="none"))
agent = Agent(model, output_type=Place, model_settings={"temperature": 0, "max_tokens": 80})
result = agent.run_sync(asked)
assert isinstance(result.output, Place) and result.usage.output_tokens > 0, result
print("all is well")
