//! How a process takes part in a pipeline: what it was told lies over what is kept.
//!
//! Where a process was told nothing (by file, environment or flags) it has adopted the pipeline's settings; where it was told
//! something else it is refused. The embedded defaults lie below both, so they never differ from anything.

use toml::{Table, Value};

use crate::{
    Difference, Errors, Plan, Reach, Settings,
    layers::{self, Layers},
    read,
    settings::{AGREED, FORMAT, compare, matches, shared},
    tables::{find, insert},
};

/// What a process was told about its pipeline.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What holds on this machine where nothing else is said, as a pipeline's text.
    pub machine: Option<String>,
    /// The pipeline's text.
    pub file: Option<String>,
    /// Only variables that start with [`crate::ENVIRONMENT_PREFIX`] count; the later of two does.
    pub environment: Vec<(String, String)>,
    /// As in `stages.decode.slots=8`.
    pub overrides: Vec<String>,
}

impl Told {
    /// How the broker is reached, and how the process tells what it does. Looks at nothing else, which may need what is kept there.
    pub fn reach(&self) -> Result<Reach, Errors> {
        read::reach(self.layers(Table::new())?)
    }

    /// The plan where nothing is kept.
    pub fn plan(&self) -> Result<Plan, Errors> {
        read::plan(self.layers(Table::new())?)
    }

    /// Whether file, environment or flags set this key.
    pub fn says(&self, key: &str) -> Result<bool, Errors> {
        Ok(self.layers(Table::new())?.told.contains(key))
    }

    /// The plan of a process that joins a pipeline: what is kept, and where nothing is kept what it was told. An error names
    /// everything that it was told otherwise.
    pub fn adopt(&self, kept: &Settings) -> Result<Plan, Refused> {
        if kept.format > FORMAT {
            return Err(Refused::Format { found: kept.format });
        }
        let known = kept.known();
        let mut layers = self.layers(known.clone())?;
        unsay_embedded(&mut layers, &known);
        drop_other_engines(&mut layers);
        let told = layers.told.clone();
        let mut alone = layers::merge(self.lower(known.clone())?, None, [], &[])?;
        for key in ["root", "broker.url"] {
            if let Some(value) = find(&layers.table, key) {
                insert(&mut alone.table, key, value.clone());
            }
        }
        let plan = read::plan(layers)?;
        // Read as a plan, so that two ways to say a value are one. What was only read from streams is no whole pipeline.
        let whole = known.contains_key("models");
        let alone = if whole { shared(&read::plan(alone)?) } else { known };
        // A store that nobody has named yet is missing, and no other one.
        let open = |key: &str| key == "store.url" || !whole;
        let counts =
            |key: &str| told.contains(key) && matches(&AGREED, key) && !(open(key) && find(&alone, key).is_none());
        let differences = compare(&alone, &shared(&plan), counts);
        if differences.is_empty() {
            Ok(plan)
        } else {
            Err(Refused::Differs { root: plan.root.to_string(), differences })
        }
    }

    /// The plan of a process that changes a pipeline. A file says everything, so what it leaves out gets the default; without one
    /// only what environment and flags name is changed.
    pub fn change(&self, kept: &Settings) -> Result<Plan, Refused> {
        if kept.format > FORMAT {
            return Err(Refused::Format { found: kept.format });
        }
        if self.file.is_some() {
            return Ok(self.plan()?);
        }
        let mut known = kept.known();
        let told = self.layers(Table::new())?.told;
        // Whoever names models wants those only.
        if told.iter().any(|key| matches(&["models.*.source"], key)) {
            known.remove("models");
            known.remove("default_model");
        }
        let mut layers = self.layers(known.clone())?;
        unsay_embedded(&mut layers, &known);
        drop_other_engines(&mut layers);
        Ok(read::plan(layers)?)
    }

    fn lower(&self, kept: Table) -> Result<Vec<Table>, Errors> {
        let machine = match &self.machine {
            Some(text) => layers::parse(text, "the machine's plan").map_err(|problem| Errors(vec![problem]))?,
            None => Table::new(),
        };
        Ok(vec![machine, kept])
    }

    fn layers(&self, kept: Table) -> Result<Layers, Errors> {
        layers::merge(self.lower(kept)?, self.file.as_deref(), self.environment.iter().cloned(), &self.overrides)
    }
}

/// The embedded store is whichever the pipeline has: the word is no other place than the one that is kept.
fn unsay_embedded(layers: &mut Layers, known: &Table) {
    let says = find(&layers.table, "store.url").and_then(Value::as_str) == Some("embedded");
    if says && let Some(url) = find(known, "store.url") {
        insert(&mut layers.table, "store.url", url.clone());
    }
}

/// A model that was told to be no sim model has no settings of one, whatever is kept.
fn drop_other_engines(layers: &mut Layers) {
    let Layers { table, told, .. } = layers;
    let Some(Value::Table(models)) = table.get_mut("models") else { return };
    for (name, model) in models.iter_mut() {
        let says_sim = told.iter().any(|key| key.starts_with(&format!("models.{name}.sim.")));
        let Value::Table(model) = model else { continue };
        if model.get("source").and_then(Value::as_str) != Some("sim") && !says_sim {
            model.remove("sim");
        }
    }
}

/// Why a process can't take part in a pipeline.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// What it was told and what is kept are no pipeline together.
    #[error(transparent)]
    Plan(#[from] Errors),
    /// A later release wrote the settings.
    #[error("the pipeline's settings have the format {found}, and this release reads {FORMAT}: use a newer baton")]
    Format {
        /// The number of the settings' shape.
        found: u32,
    },
    /// The process was told other settings than those that all must agree on.
    #[error(
        "this process was told other settings than the pipeline under root {root} has:{}\nleave them out here, or change the pipeline \
         with `baton provision FILE` (or `baton provision --set KEY=VALUE`)",
        lines(.differences)
    )]
    Differs {
        /// The pipeline's name.
        root: String,
        /// At least one.
        differences: Vec<Difference>,
    },
}

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(|difference| format!("\n  {difference}")).collect()
}
