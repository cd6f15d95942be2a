//! Which models of a pipeline foreign engines serve.

use std::collections::BTreeMap;

use super::Engine;
use crate::Name;

/// The engines of a pipeline's models, as far as they are foreign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Engines {
    by_model: BTreeMap<String, Engine>,
    /// Of the model that requests get which name none.
    unnamed: Option<Engine>,
    /// Whether all requests get that model, whatever they name.
    fixed: bool,
}

impl Engines {
    /// Those of these models, of which requests that name none get the default.
    pub fn new(models: impl IntoIterator<Item = (Name, Engine)>, default: &Name) -> Self {
        let by_model: BTreeMap<String, Engine> =
            models.into_iter().map(|(name, engine)| (name.to_string(), engine)).collect();
        let unnamed = by_model.get(default.as_str()).copied();
        Self { by_model, unnamed, fixed: false }
    }

    /// The same where one model answers all requests.
    #[must_use]
    pub fn fixed(self, model: &Name) -> Self {
        Self { unnamed: self.by_model.get(model.as_str()).copied(), fixed: true, ..self }
    }

    /// The engine of the model that a request gets; none of Baton's own.
    pub fn of(&self, model: Option<&str>) -> Option<Engine> {
        match model {
            Some(model) if !self.fixed => self.by_model.get(model).copied(),
            _ => self.unnamed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_the_engine_of_its_model() {
        let name = |text| Name::new(text).unwrap();
        let engines = Engines::new([(name("a"), Engine::Vllm), (name("b"), Engine::LlamaCpp)], &name("b"));
        let of = |engines: &Engines| [Some("a"), Some("own"), None].map(|model| engines.of(model));
        assert_eq!(of(&engines), [Some(Engine::Vllm), None, Some(Engine::LlamaCpp)]);
        assert_eq!(of(&engines.clone().fixed(&name("a"))), [Some(Engine::Vllm); 3]);
        assert_eq!(of(&engines.fixed(&name("own"))), [None; 3]);
    }
}
