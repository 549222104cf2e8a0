//! The engine on the simulated disk, one thread, against a model.

#![cfg_attr(not(test), allow(dead_code, reason = "fuzzing uses only the model"))]

mod internals;
pub(crate) mod model;
pub(crate) mod store;

#[cfg(test)]
mod basics;
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
mod renewed;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod simulation;
