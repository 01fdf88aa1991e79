//! The example service `inventory` under failures: its bundle, customers who write down what they were told, and the
//! audit that holds that against the tables.

pub mod audit;
pub mod books;
pub mod customer;
pub mod ledger;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};

use self::customer::{Customer, Tally};
use self::ledger::Ledger;
use crate::bundle::{Bundle, INVENTORY, Places};

/// The service, under this name; `number` makes one release another than the next.
pub fn bundle(places: &Places, name: &str, number: u32) -> Result<Bundle> {
    Bundle::example(places, INVENTORY, name, &format!("[settings]\nnumber = {number}\n"))
}

/// Says when the customers are to go home.
#[derive(Clone, Default)]
pub struct Closing(Arc<AtomicBool>);

impl Closing {
    pub fn is_now(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Customers at work, on a thread of their own.
pub struct Crowd {
    closing: Closing,
    thread: JoinHandle<Result<Vec<Customer>>>,
}

impl Crowd {
    pub fn start<F>(
        customers: Vec<Customer>,
        work: impl Fn(usize, Customer, Closing) -> F + Send + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = Customer> + Send + 'static,
    {
        let closing = Closing::default();
        let told = closing.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for (index, customer) in customers.into_iter().enumerate() {
                    tasks.spawn(work(index, customer, told.clone()));
                }
                let mut home = Vec::new();
                while let Some(customer) = tasks.join_next().await {
                    home.push(customer?);
                }
                Ok(home)
            })
        };
        let thread = std::thread::Builder::new().name("customers".into()).spawn(run)?;
        Ok(Self { closing, thread })
    }

    /// Waits for what they are at, and gives what all of them know.
    pub fn close(self) -> Result<(Ledger, Tally)> {
        self.closing.0.store(true, Ordering::Release);
        let customers = self.thread.join().map_err(|_| anyhow!("a customer panicked"))??;
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for customer in customers {
            ledger.merge(customer.ledger);
            tally.merge(customer.tally);
        }
        Ok((ledger, tally))
    }
}
