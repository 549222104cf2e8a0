//! The engine on the simulated disk, mostly on one thread, against a model.
//!
//! `internals` looks below the engine's interface, `model` has the steps, the history and its
//! check, and `store` runs steps. The other files draw steps, or test one behaviour at a time.

#![cfg_attr(not(test), allow(dead_code, reason = "fuzzing uses only the model"))]

mod internals;
pub(crate) mod model;
pub(crate) mod store;

#[cfg(test)]
mod basics;
#[cfg(test)]
mod callers;
#[cfg(test)]
mod clocks;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod failing;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod pressure;
#[cfg(test)]
mod read_only;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod renewed;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod simulation;
